defmodule FamilyChat.Repo.Migrations.KithV3 do
  use Ecto.Migration

  def up, do: Kith.Migration.up(version: 3)
  def down, do: Kith.Migration.down(version: 3)
end
