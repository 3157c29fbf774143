"""A setting's name in the environment, and the error that names one."""

PREFIX = "BEACON_PROXY_"
CONFIG_VARIABLE = "BEACON_PROXY_CONFIG"


class SettingsError(Exception):
    """The settings cannot be used. The message names each setting, what was found, what was expected and what to do."""


def variable(path: tuple[str, ...]) -> str:
    """The environment variable of a setting."""
    return PREFIX + "__".join(path).upper()


def missing(name: str) -> str:
    return (
        f"{name}: missing; expected the key from the vendor's settings page. "
        f"Set {variable(tuple(name.split('.')))} in the environment, or {name.rsplit('.', 1)[-1]} in the configuration file."
    )
