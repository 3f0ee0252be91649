defmodule Kith.Crash.Journal do
  @moduledoc false
  # What a VM did, in a file that survives its kill -9: each entry is one write, which the system has once
  # the call returned. An entry that was being written when the VM died is incomplete, and left out.

  @doc "Opens a journal to append to. The file belongs to the process that opens it."
  def open!(path) do
    {:ok, file} = :file.open(path, [:append, :raw, :binary])
    file
  end

  @doc "Appends terms in one write."
  def write!(file, entries) when is_list(entries) do
    bytes =
      for entry <- entries do
        term = :erlang.term_to_binary(entry)
        [<<byte_size(term)::32, :erlang.crc32(term)::32>>, term]
      end

    :ok = :file.write(file, bytes)
  end

  @doc "All entries of a journal, in their order."
  def read(path) do
    case File.read(path) do
      {:ok, bytes} -> entries(bytes, [])
      {:error, :enoent} -> []
    end
  end

  defp entries(<<size::32, crc::32, term::binary-size(size), rest::binary>>, read) do
    if :erlang.crc32(term) == crc,
      do: entries(rest, [:erlang.binary_to_term(term) | read]),
      else: raise("a journal is damaged")
  end

  defp entries(_incomplete, read), do: Enum.reverse(read)
end
