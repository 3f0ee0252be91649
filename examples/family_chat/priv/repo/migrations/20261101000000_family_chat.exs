defmodule FamilyChat.Repo.Migrations.FamilyChat do
  use Ecto.Migration

  def up do
    Kith.Migration.up(version: 3)
    Enum.each(FamilyChat.Schema.statements("BYTEA"), &execute/1)
  end

  def down do
    for table <-
          ~w(recovery_kits notices undelivered envelopes messages members conversations contacts login_failures user_tokens users),
        do: execute("DROP TABLE #{table}")

    Kith.Migration.down(version: 1)
  end
end
