"""`mammo-fed data`: from a hospital's DICOM files to a site's cohort."""
