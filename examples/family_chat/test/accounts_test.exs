defmodule FamilyChat.AccountsTest do
  use ExUnit.Case, async: true

  import FamilyChat.Family

  alias FamilyChat.{Accounts, SQL}

  test "who signs up logs in with the password, whatever the case of the name" do
    user = person!("Anna")
    assert {:ok, ^user} = Accounts.authenticate(String.upcase(user.name), password())
    assert {:error, :wrong} = Accounts.authenticate(user.name, "another password")
    assert {:error, :wrong} = Accounts.authenticate("nobody at all", password())
    assert {:error, :wrong} = Accounts.authenticate(<<0>>, password())
    assert {:error, :wrong} = Accounts.authenticate(user.name, "")
    assert {:error, :wrong} = Accounts.authenticate(user.name, String.duplicate("x", 100_000))
    assert {:error, :wrong} = Accounts.authenticate(%{}, [])
  end

  test "what cannot be an account is said for each field, and makes none" do
    taken = person!("Anna")

    for {change, field} <- [
          {%{"name" => "a"}, :name},
          {%{"name" => "Anna Maria"}, :name},
          {%{"name" => <<255>>}, :name},
          {%{"name" => %{}}, :name},
          {%{"name" => taken.name}, :name},
          {%{"display_name" => ""}, :display_name},
          {%{"display_name" => String.duplicate("x", 41)}, :display_name},
          {%{"password" => "short"}, :password},
          {%{"password" => String.duplicate("x", 201)}, :password}
        ] do
      params = %{"name" => "somebody", "display_name" => "Somebody", "password" => password()}
      assert {:error, errors} = Accounts.sign_up(Map.merge(params, change))
      assert [^field] = Map.keys(errors)
    end

    assert SQL.rows("SELECT 1 FROM users WHERE name = 'somebody'") == []
  end

  test "the password is stored as a hash of Argon2id, and sessions as hashes" do
    user = person!("Anna")
    [[hash]] = SQL.rows("SELECT password_hash FROM users WHERE id = $1", [user.id])
    assert hash =~ ~r/\A\$argon2id\$/
    token = Accounts.create_session(user)
    assert Accounts.user_of_session(token) == user
    assert SQL.rows("SELECT 1 FROM user_tokens WHERE token_hash = $1", [SQL.bytes(token)]) == []
    Accounts.delete_session(token)
    assert Accounts.user_of_session(token) == nil
    assert Accounts.user_of_session(nil) == nil
  end

  test "a session ends after sixty days" do
    user = person!("Anna")
    token = Accounts.create_session(user)
    old = SQL.now() - 61 * 86_400_000
    SQL.run("UPDATE user_tokens SET inserted_at = $2 WHERE user_id = $1", [user.id, old])
    assert Accounts.user_of_session(token) == nil
    Accounts.sweep()
    assert SQL.rows("SELECT 1 FROM user_tokens WHERE user_id = $1", [user.id]) == []
  end

  test "a name has to wait after ten wrong passwords, and others do not" do
    [user, other] = people!(~w(Anna Ben))
    for _ <- 1..10, do: {:error, :wrong} = Accounts.authenticate(user.name, "wrong password")
    assert Accounts.authenticate(user.name, password()) == {:error, :wait}
    assert {:ok, ^other} = Accounts.authenticate(other.name, password())
  end

  test "an account has keys, and new ones on request" do
    user = person!("Anna")
    before = FamilyChat.Kith.pre_key_bundle!(user.id).identity_key
    :ok = Accounts.renew_keys(user)
    assert FamilyChat.Kith.pre_key_bundle!(user.id).identity_key != before
  end
end
