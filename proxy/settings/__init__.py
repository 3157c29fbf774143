"""Every setting: what it is, what it may be, where it is read from, and how a wrong one is explained."""

from proxy.settings.model import Settings, SiteSettings
from proxy.settings.names import PREFIX, SettingsError, variable
from proxy.settings.source import load
from proxy.settings.table import table

__all__ = ["PREFIX", "Settings", "SettingsError", "SiteSettings", "load", "table", "variable"]
