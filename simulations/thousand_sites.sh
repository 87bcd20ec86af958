#!/bin/sh
# A thousand small hospitals, a tenth of them in each round.
# Every hospital keeps the run's payload on its own disk: with 20 components about 1 MB each, with the default 22 MB.
exec mammo-fed simulate federation.num_sites=1000 federation.fraction=0.1 data.images_train=24000 data.images_test=6000 \
    data.image_size=64 model.input_size=64 model.flips=none model.components=20 "$@"
