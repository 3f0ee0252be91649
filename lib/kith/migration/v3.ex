defmodule Kith.Migration.V3 do
  @moduledoc false
  # Times are milliseconds since 1970 unless a name says otherwise.

  def up(bytes), do: escrow(bytes)

  def down, do: drop_escrow()

  # A recovery key under a service key, with the consent it is bound to. The row stays when the consent is withdrawn, and the
  # key goes.
  defp escrow(bytes) do
    [
      """
      CREATE TABLE kith.signal_escrows (
        escrow_id TEXT NOT NULL PRIMARY KEY,
        user_id TEXT NOT NULL,
        service_key TEXT NOT NULL,
        wrapped #{bytes},
        consented_by TEXT NOT NULL,
        consent_text TEXT NOT NULL,
        consented_at BIGINT NOT NULL,
        withdrawn_by TEXT,
        withdrawn_at BIGINT
      )
      """,
      "CREATE INDEX signal_escrows_user ON kith.signal_escrows (user_id, consented_at)",
      # Who has unwrapped a key, or tried to. Rows are added and never changed.
      """
      CREATE TABLE kith.signal_escrow_unwraps (
        unwrap_id TEXT NOT NULL PRIMARY KEY,
        escrow_id TEXT,
        user_id TEXT NOT NULL,
        unwrapped_by TEXT NOT NULL,
        purpose TEXT NOT NULL,
        unwrapped_at BIGINT NOT NULL,
        result TEXT NOT NULL
      )
      """,
      "CREATE INDEX signal_escrow_unwraps_user ON kith.signal_escrow_unwraps (user_id, unwrapped_at)"
    ]
  end

  defp drop_escrow do
    for table <- ~w(signal_escrows signal_escrow_unwraps), do: "DROP TABLE kith.#{table}"
  end
end
