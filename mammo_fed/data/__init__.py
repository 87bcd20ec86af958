"""Cohorts of patients: read, drawn, divided over sites, checked and cached."""
