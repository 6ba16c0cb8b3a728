"""The report on cross-validations: an HTML page with tables and figures."""
