#!/bin/sh
# Folders of a coordinator and three hospitals with procedural patients, and a prepared run; what is there already stays.
#   deploy/trial.sh FEDERATION HOST SITES [key=value ...]
# HOST is the coordinator's name for the hospitals; SITES holds one folder for each of them. For trials: in a real federation every
# hospital makes its own folder and key, and both sides compare fingerprints by another way (docs/deployment.md).
set -eu
federation=$1 host=$2 sites=$3
shift 3
if [ ! -e "$federation/federation.json" ]; then
    flower-server init "$federation" --name trial --host "$host" --port "${PORT:-8443}"
fi
for number in 1 2 3; do
    site=$sites/hospital-$number
    if [ ! -e "$site/site.toml" ]; then
        site-client init "$site" --name "hospital-$number" --server "$host:${PORT:-8443}" --ca "$federation/for-sites/ca.crt" \
            --share "$number/3" --max-epsilon 6 data=phantom
        flower-server register "$federation" "$site/keys/hospital-$number.pub"
    fi
done
if [ ! -e "$federation/runs/trial" ]; then
    flower-server run "$federation" --prepare hydra.run.dir="$federation/runs/trial" data=phantom privacy.target_epsilon=6 "$@"
fi
