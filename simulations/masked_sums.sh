#!/bin/sh
# The server sees only the sum of the hospitals' updates, never a single one.
exec mammo-fed simulate federation.secure.use=masks "$@"
