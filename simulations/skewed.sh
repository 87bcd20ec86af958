#!/bin/sh
# Hospitals whose sizes fall by a power law; procedural ones come ready-made, so it needs data=csv, cohort or mammo_dp.
exec mammo-fed simulate federation.partition=size federation.partition_alpha=0.5 "$@"
