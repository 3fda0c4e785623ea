from latmod.doctor import check_up, checkup_rows


def test_a_check_up_tells_machine_noise_and_advice() -> None:
    found = check_up(seconds=0.3)
    assert found.reference.conv_ns > 0
    assert set(found.spread) == {"conv", "copy", "dispatch"}
    assert 0 < found.empty_infer_ns < 100_000
    assert found.advice
    rows = {str(row["what"]): row["value"] for row in checkup_rows(found)}
    assert rows["machine id"] == found.machine.id
    assert "ms, varies by" in str(rows["reference load: copy"])
