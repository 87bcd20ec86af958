"""Lesions marked by DICOM objects of their own: segmentations, structure sets, reports and presentation states."""
