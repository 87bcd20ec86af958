"""Phantom patients as archives of DICOM files."""
