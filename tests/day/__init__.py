"""An operator's day, played through for real: `make day`."""
