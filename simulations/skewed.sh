#!/bin/sh
# Hospitals of very unequal size: shares drawn from Dirichlet(0.5).
exec mammo-fed simulate federation.partition=size federation.partition_alpha=0.5 "$@"
