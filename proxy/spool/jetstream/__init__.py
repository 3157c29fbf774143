"""The spool over many machines: NATS JetStream replicates and stores, and nothing here does that work again.

One work-queue stream a site, so that the server's own sequence numbers are its ledger: what was ever stored is the last sequence,
what is pending are the messages, and what is no message any more has ended. An ending other than "delivered" is recorded before
the hit is acknowledged, and "delivered" is the rest. Beside them are streams of dead letters, of counts, and for who is at work.
"""
