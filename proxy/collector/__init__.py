"""The collector: takes the browser's request, stores its facts, answers the GIF. It holds no API key and parses nothing.

`collect` is the rule; asgi.py and wsgi.py are two translations of it.
"""
