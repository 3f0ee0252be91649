defmodule FamilyChat.Repo do
  @moduledoc """
  The database of the application, which is also Kith's: what a message changes in both is one transaction.

  With `database: :postgres` in the configuration it is an Ecto repository. Else it is the embedded database of
  the Kith instance, behind the functions of a repository that the application uses.
  """

  @database Application.compile_env!(:family_chat, :database)

  if @database == :postgres do
    use Ecto.Repo, otp_app: :family_chat, adapter: Ecto.Adapters.Postgres

    @doc "Bytes as a parameter."
    def bytes(binary), do: binary
  else
    alias FamilyChat.Kith, as: Instance

    def query(sql, params), do: Kith.SQLite.query(Instance.database(), sql, params)
    def transaction(fun), do: Kith.SQLite.transaction(Instance.database(), fun)
    def rollback(reason), do: Kith.SQLite.rollback(Instance.database(), reason)

    @doc "Bytes as a parameter: SQLite tells them from text."
    def bytes(binary), do: {:blob, binary}
  end

  @doc "Whether the application is started with a database server."
  def postgres?, do: @database == :postgres
end
