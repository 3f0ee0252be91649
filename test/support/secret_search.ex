defmodule Kith.SecretSearch do
  @moduledoc false
  # Looks for secrets in what a VM has left: its output, its crash dump.

  alias Kith.StateReader

  @doc "The secrets of a database, of an instance that has stopped."
  def read_secrets(database, kek), do: StateReader.secrets(reader(database), kek)

  @doc "The messages of its archive."
  def read_archive(database, kek), do: StateReader.archived_messages(reader(database), kek)

  defp reader(database) do
    {:ok, server} = Kith.SQLite.start_link(path: database)
    handle = Kith.SQLite.handle(server)

    fn sql ->
      {:ok, %{rows: rows}} = Kith.SQLite.query(handle, sql)
      rows
    end
  end

  @doc """
  Finds bytes as they are, as a list of numbers, in hexadecimal, and in base64 at any offset (which is how a crash dump
  writes binaries).
  """
  def found?(text, secret),
    do: Enum.any?(spellings(secret), &(:binary.match(text, &1) != :nomatch))

  @doc "Printed terms without the spaces and line breaks that lists of numbers are broken with."
  def unbroken(printed), do: :binary.replace(printed, [" ", "\n"], "", [:global])

  defp spellings(secret) do
    bytes = :binary.bin_to_list(secret)

    [
      secret,
      Base.encode16(secret),
      Base.encode16(secret, case: :lower),
      Enum.join(bytes, ",")
      | for(drop <- 0..2, do: base64_within(secret, drop))
    ]
  end

  defp base64_within(secret, drop) do
    size = div(byte_size(secret) - drop, 3) * 3
    secret |> binary_part(drop, size) |> Base.encode64()
  end
end
