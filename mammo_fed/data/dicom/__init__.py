"""From DICOM archives to lesion patches; the only home of pydicom."""
