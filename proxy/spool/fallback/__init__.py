"""Where hits wait on this host while the spool's servers do not take them: a directory of SQLite lanes beside a `nats://` spool.

The collector's intake stores there what the servers have not acknowledged in a second, and the mover brings it over when they are
back. A hit may then be at both places (published, and the acknowledgement lost): it is moved under the id that it was published
under, so that the server knows it; what is older than the server's memory, the vendor knows, since copies are identical.
"""
