"""`mammo-fed privacy`: what a run would cost, and what a site's ledger says."""
