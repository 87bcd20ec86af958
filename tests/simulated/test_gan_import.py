"""The paper's images as a synthetic set."""

import json


def test_gan_import_keeps_the_true_provenance_of_the_papers_images(cli, clone, tmp_path):
    code, out, err = cli("gan", "import", clone, "--output", tmp_path / "set", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["kind"] == "no_dp"
    assert found["privacy"] is None
    assert found["donor"]["name"] == "CBIS-DDSM training images"
    assert len(found["donor"]["image_digests"]) == found["donor"]["images"]
    assert found["generator"]["kind"] == "external"
