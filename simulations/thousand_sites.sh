#!/bin/sh
# A thousand small hospitals, a tenth of them in each round.
exec mammo-fed simulate federation.num_sites=1000 federation.fraction=0.1 data.images_train=24000 data.images_test=6000 \
    data.image_size=64 model.input_size=64 model.flips=none "$@"
