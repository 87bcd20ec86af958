"""A run whose delta permits to publish a patient says so on the console and in its record."""


def test_relation_to_a_delta_above_one_in_the_patients_is_a_warning_of_the_run(simulate):
    run = simulate("privacy.delta=0.09", "federation.rounds=1", "federation.num_sites=2")
    assert run.code == 0, run.err
    assert len(run.record.privacy.cautions) == 2
    assert all("privacy.delta=0.09 is not below 1 /" in said for said in run.record.privacy.warnings)
    assert "WARNING" in run.out + run.err
    assert simulate("federation.rounds=1", "federation.num_sites=2").record.privacy.warnings == ()
