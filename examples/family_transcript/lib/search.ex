defmodule FamilyTranscript.Search do
  @moduledoc """
  Looks for what must not be in the database: every text of the conversation, and the key-encryption key as
  bytes and as text.

  Texts under eight bytes are left out, as random bytes hold them by chance. So are those that are there before the
  first message: they are words of the schema, or somebody's name.
  """

  alias FamilyTranscript.Failure

  @shortest 8

  @enforce_keys [:directory, :database, :needles]
  defstruct [:directory, :database, :needles]

  @doc "Prepares the search. Call it when people are registered and nothing is said."
  def new(directory, database, texts, key) do
    texts = texts |> Enum.uniq() |> Enum.filter(&(byte_size(&1) >= @shortest))
    keys = [key, Base.encode64(key)]
    all = %__MODULE__{directory: directory, database: database, needles: keys ++ texts}
    %{all | needles: keys ++ (texts -- found(all))}
  end

  @doc "Copies the files of the database and returns what is found in the copies."
  def found(%__MODULE__{needles: needles} = search) do
    pattern = :binary.compile_pattern(needles)

    search
    |> copies()
    |> Enum.flat_map(fn copy ->
      bytes = File.read!(copy)

      for {start, length} <- :binary.matches(bytes, pattern),
          do: binary_part(bytes, start, length)
    end)
    |> Enum.uniq()
  end

  @doc "Returns how many bytes were searched for how many texts."
  def extent(%__MODULE__{database: database, needles: needles}) do
    sizes = for file <- files(database), do: File.stat!(file).size
    {Enum.sum(sizes), length(needles) - 2}
  end

  @doc "Shows that the search finds: a text and the key are put into a copy, and have to be found there."
  def prove!(%__MODULE__{} = search) do
    planted = [hd(search.needles), List.last(search.needles)]
    bytes = search |> copies() |> hd() |> File.read!()
    half = div(byte_size(bytes), 2)
    scratch = Path.join(search.directory, "planted.db")

    File.write!(scratch, [
      binary_part(bytes, 0, half),
      Enum.intersperse(planted, 0),
      binary_part(bytes, half, byte_size(bytes) - half)
    ])

    if planted -- found(%{search | database: scratch}) != [],
      do: raise(Failure, "the search of the database does not find what was planted")
  end

  # SQLite loses its locks when its own process closes another handle of a file, so another process
  # reads the files.
  defp copies(%__MODULE__{directory: directory, database: database}) do
    for file <- files(database) do
      copy = Path.join(directory, "copy-of-" <> Path.basename(file))
      {_, 0} = System.cmd("cp", [file, copy])
      copy
    end
  end

  # The file, the write-ahead log and its index.
  defp files(database),
    do: Enum.filter([database, database <> "-wal", database <> "-shm"], &File.exists?/1)
end
