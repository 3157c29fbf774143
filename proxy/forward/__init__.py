"""The forwarder: claims hits, makes them requests with the key, sends them, settles. The only room that knows an API key."""
