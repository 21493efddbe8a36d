"""The bundle: one folder that an export writes and every runtime reads."""

from ptp.bundle.hashes import HashCache
from ptp.bundle.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from ptp.bundle.reader import Bundle, open_bundle, read_manifest

__all__ = ["MANIFEST_NAME", "SCHEMA_VERSION", "Bundle", "HashCache", "Manifest", "open_bundle", "read_manifest"]
