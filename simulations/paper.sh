#!/bin/sh
# The paper's rows as one resumable table; needs a clone of RichardObi/mammo_dp (MAMMO_DP_ROOT=CLONE).
exec mammo-fed reproduce experiment=paper "$@"
