defmodule Kith.SQLite.Error do
  @moduledoc """
  What the embedded database refused, and why.

  `kind` is one of

    * `:busy` - another connection, or another process of this VM, held the database for too long
    * `:cannot_open` - the file cannot be created or opened
    * `:closed` - the database is stopped
    * `:constraint` - a constraint refused the change; the message names it
    * `:corrupt` - the file is not a database, or is damaged
    * `:full` - the disk is full
    * `:interrupted` - the statement ran longer than its `:timeout`
    * `:invalid` - the database cannot be opened with these options
    * `:io` - the operating system failed to read or write
    * `:lease` - the transaction ran longer than its `:timeout` and was rolled back
    * `:panic` - a fault in the native library was caught
    * `:parameter` - the parameters do not fit the SQL
    * `:read_only` - the file or its directory cannot be written
    * `:sql` - the SQL is wrong, or names something that does not exist
    * `:transaction` - the transaction is over, or the statement has no place in it

  The message names tables, columns and SQL. It never repeats a value: values travel as parameters.
  """

  defexception [:kind, :message]

  @type kind ::
          :busy
          | :cannot_open
          | :closed
          | :constraint
          | :corrupt
          | :full
          | :interrupted
          | :invalid
          | :io
          | :lease
          | :panic
          | :parameter
          | :read_only
          | :sql
          | :transaction

  @type t :: %__MODULE__{kind: kind, message: String.t()}

  @doc false
  def from_native(:panic) do
    %__MODULE__{kind: :panic, message: "a fault in the native library was caught"}
  end

  def from_native({kind, message}), do: %__MODULE__{kind: kind, message: message}
end
