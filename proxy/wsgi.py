"""`proxy.wsgi:app`: the collector as a WSGI application, for threaded servers. Run `beacon-proxy forward` beside it.

Settings come from the environment (and the file BEACON_PROXY_CONFIG names). The API key is not needed here: leave it out of the
WSGI server's environment. The spool is opened at the first beacon, after the server has forked its workers.
"""

import os
import threading

from proxy import settings
from proxy.collector.wsgi import CollectorWsgi
from proxy.log import configure
from proxy.spool import open_intake
from proxy.spool.port import Intake

_lock = threading.Lock()
_intakes: dict[int, Intake] = {}
_settings = settings.load()
configure(_settings.log_level, _settings.log_format)


def _intake() -> Intake:
    pid = os.getpid()
    intake = _intakes.get(pid)
    if intake is None:
        with _lock:
            intake = _intakes.get(pid) or open_intake(_settings.spool_config())
            _intakes[pid] = intake
    return intake


app = CollectorWsgi(_settings.collector(), _intake)
