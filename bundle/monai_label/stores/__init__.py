"""Where images and labels lie: a folder of NIfTI files, or a DICOM archive."""
