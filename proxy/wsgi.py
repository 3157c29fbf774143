"""`proxy.wsgi:app`: the collector as a WSGI application, for threaded servers. Run `beacon-proxy forward` beside it.

Settings come from the environment (and the file BEACON_PROXY_CONFIG names). The API key is not needed here: leave it out of the
WSGI server's environment. The spool is opened at the first beacon, after the server has forked its workers.
"""

from proxy import settings
from proxy.collector.wsgi import CollectorWsgi
from proxy.log import configure
from proxy.spool.embedded import EmbeddedIntake

_settings = settings.load()
configure(_settings.log_level, _settings.log_format)
app = CollectorWsgi(_settings.collector(), EmbeddedIntake(_settings.spool_config))
