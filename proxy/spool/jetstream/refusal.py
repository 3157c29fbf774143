"""What the servers refuse, in words for the operator: theirs, then what mends it. By their numbers (server/errors.json)."""

NO_ROOM = (10023, 10047, 10002)
"""The servers', or the account's, own limit of what is stored is reached; it is no fault of the message or of its stream."""
FULL = "the servers have no room: "
"""So begins why something was refused for that."""
_LIMIT = "raise their max_file_store, or the account's limit: it must be above max_bytes of all spools there together"
_REMEDIES = {
    **dict.fromkeys(NO_ROOM, _LIMIT),
    10077: "the stream has a limit of its own (`nats stream info`); raise it",
    10005: "replicas= in the spool's URL needs as many servers with JetStream, each with room",
    10074: "this server is alone: name a cluster's servers, or set replicas=1 in the spool's URL",
    10065: "another stream takes these subjects; name the spool otherwise with stream=",
    10039: "the login's account has no JetStream; give it some, or use another login",
    10076: "it is off in the server's configuration, or since its disk is full: make room, then start the server anew",
}


def in_words(number: int, description: str) -> str:
    """Of one refusal."""
    words = f"{description}: {remedy}" if (remedy := _REMEDIES.get(number)) else description
    return f"{FULL}{words}" if number in NO_ROOM else words


def for_want_of_room(reason: str) -> bool:
    """Whether that is why."""
    return FULL in reason
