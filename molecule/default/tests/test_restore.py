"""A backup out of its turn, and the database back to a moment: what was written after is gone, and comes back."""

from __future__ import annotations

from conftest import Kubectl


def test_the_database_goes_back_to_a_moment_and_returns(play, kubectl: Kubectl) -> None:
    def sql(text: str) -> str:
        words = ("psql", "-X", "-qAt", "-U", "postgres", "-d", "citadelbuy", "-c", text)
        where = ("--namespace", "citadelbuy", "exec", "postgres-0", "--container", "postgres", "--")
        return kubectl(*where, *words).strip()

    def restore(*arguments: str) -> str:
        done = play("restore", "-e", "restore_confirm=true", *arguments)
        assert done.rc == 0, done.stdout + done.stderr
        return done.stdout

    sql("DROP TABLE IF EXISTS restored; CREATE TABLE restored AS SELECT generate_series(1, 1000) AS number")
    done = play("backup", "-e", "backup_stores=postgres")
    assert done.rc == 0, done.stdout + done.stderr
    assert "postgres: " in done.stdout
    moment = sql("SELECT clock_timestamp()")
    sql("INSERT INTO restored SELECT generate_series(1001, 2000)")
    plan = play("restore", "-e", f"restore_to='{moment}'")
    assert f"Lost: whatever was written after {moment[:19]}" in plan.stdout
    assert "changed=0" in plan.stdout
    try:
        restore("-e", f"restore_to='{moment}'")
        assert sql("SELECT count(*) FROM restored") == "1000"
        done = play("site")
        assert done.rc == 0, done.stdout + done.stderr
        assert "changed=0" in done.stdout
    finally:
        restore("-e", "restore_undo=true")
    assert sql("SELECT count(*) FROM restored") == "2000"
    sql("DROP TABLE restored")
    assert "deleted: pgdata.before-" in restore("-e", "restore_discard=true")
