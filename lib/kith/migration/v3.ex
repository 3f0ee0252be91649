defmodule Kith.Migration.V3 do
  @moduledoc false

  def up(bytes) do
    # What stands in data_key for everybody to read, as columns: the key's own id, which is the key service's where one has
    # a part in it, the key as that service keeps it, and which key-encryption key wraps it, in which version. NULL in rows
    # from before. Nothing is decided by them.
    for table <- ~w(signal_accounts signal_threads),
        column <- ["key_id TEXT", "wrapped_dek #{bytes}", "kek_id TEXT", "kek_version BIGINT"],
        do: "ALTER TABLE kith.#{table} ADD COLUMN #{column}"
  end

  def down do
    for table <- ~w(signal_accounts signal_threads),
        column <- ~w(key_id wrapped_dek kek_id kek_version),
        do: "ALTER TABLE kith.#{table} DROP COLUMN #{column}"
  end
end
