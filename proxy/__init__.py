"""A first-party beacon proxy: takes a site's tracking beacons, keeps them safe on disk, delivers them to the vendor."""

__version__ = "0.1.0"
