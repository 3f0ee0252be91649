defmodule FamilyChat.Repo.Migrations.RecoveryKits do
  use Ecto.Migration

  # Those that are there already stay as they are.
  def up, do: Enum.each(FamilyChat.Schema.statements("BYTEA"), &execute/1)
  def down, do: :ok
end
