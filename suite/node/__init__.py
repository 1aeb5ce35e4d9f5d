"""The DICOM node: series in by C-STORE, a verb's job on each, the derived series out by C-STORE."""
