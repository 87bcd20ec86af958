#!/bin/sh
# Four unlike hospitals with procedural masses: the federation of `mammo-fed demo`.
exec mammo-fed simulate 'synthesis.use=[whiten]' "$@"
