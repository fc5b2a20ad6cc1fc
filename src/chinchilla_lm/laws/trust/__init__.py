"""How far a law may be trusted: forecasts, back-tests, calibration and diagnostics."""
