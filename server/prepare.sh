#!/bin/sh
# Prepare a run with settings to start from: robust against one hostile site, patients protected to epsilon 6 at delta 1e-4.
#   server/prepare.sh FEDERATION data=mammo_dp data.root=CLONE [key=value ...]
# `data` is what the server evaluates on. The unit and the container then start the run; by hand: flower-server run FEDERATION --resume
set -eu
federation=$1
shift
exec flower-server run "$federation" --prepare federation=robust privacy.target_epsilon=6 privacy.delta=1e-4 privacy.unit=patient "$@"
