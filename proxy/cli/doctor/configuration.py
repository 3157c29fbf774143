"""Are the settings good, as `check` has it, and is there a key where one is needed?"""

from collections.abc import Iterator

from proxy.cli.check import describe
from proxy.cli.doctor.finding import Finding, ok, wrong
from proxy.cli.doctor.installation import Installation
from proxy.enrich import EnricherError
from proxy.forward.config import CannotTrace
from proxy.settings import SettingsError
from proxy.spool.port import SpoolError


def look(installation: Installation) -> Iterator[Finding]:
    try:
        describe(installation.settings.model_copy(update={"forward": installation.delivers}))
    except SettingsError as error:
        yield wrong(str(error), "run doctor with the service's own settings: the same --config, environment and user")
    except (SpoolError, EnricherError, CannotTrace) as error:
        yield wrong(str(error), "mend the setting, or run doctor as the service's user")
    else:
        yield ok(f"good, and {'the key is there (not shown)' if installation.delivers else 'no key is needed on this host'}")
