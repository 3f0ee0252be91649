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

  test "no hash of the password is stored, and sessions as hashes" do
    user = person!("Anna")
    assert hash_of(user) == ""
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

  test "an account has keys, and new ones for whoever knows the password, under the same" do
    user = person!("Anna")
    [here, there] = for _ <- 1..2, do: Accounts.create_session(user)
    before = FamilyChat.Kith.pre_key_bundle!(user.id).identity_key

    assert {:error, %{password: _}} = Accounts.renew_keys(user, here, "another password")
    assert FamilyChat.Kith.pre_key_bundle!(user.id).identity_key == before

    :ok = Accounts.renew_keys(user, here, password())
    assert FamilyChat.Kith.pre_key_bundle!(user.id).identity_key != before
    assert locked_at_rest?(user)
    assert hash_of(user) == ""
    assert Accounts.user_of_session(here) == user
    assert Accounts.user_of_session(there) == nil
    assert {:ok, ^user} = Accounts.authenticate(user.name, password())
  end

  test "an account that was made before accounts were locked is locked by the next login, and by no wrong password" do
    user = person!("Anna")
    of_before!(user)
    refute locked_at_rest?(user)

    assert Accounts.authenticate(user.name, "another password") == {:error, :wrong}
    refute locked_at_rest?(user)

    assert Accounts.authenticate(user.name, password()) == {:ok, user}
    assert locked_at_rest?(user)
    assert hash_of(user) == ""
    assert Accounts.authenticate(user.name, password()) == {:ok, user}
    assert Accounts.authenticate(user.name, "another password") == {:error, :wrong}
  end

  test "two logins at once of an account of before are both let in" do
    user = person!("Anna")
    of_before!(user)
    logins = for _ <- 1..2, do: Task.async(fn -> Accounts.authenticate(user.name, password()) end)
    assert Task.await_many(logins, 30_000) == [{:ok, user}, {:ok, user}]
    assert locked_at_rest?(user)
  end

  test "an account whose keys were locked, and whose hash was not forgotten yet, is that of its password" do
    user = person!("Anna")
    Accounts.put_hash(user.id, Kith.Password.hash!(password()))
    assert Accounts.authenticate(user.name, password()) == {:ok, user}
    assert hash_of(user) == ""
  end

  test "another password locks the same keys, and logs the other browsers out" do
    user = person!("Anna")
    [here, there] = for _ <- 1..2, do: Accounts.create_session(user)
    before = FamilyChat.Kith.pre_key_bundle!(user.id).identity_key

    assert {:error, %{new: _}} = Accounts.change_password(user, here, password(), "short")

    assert {:error, %{password: _}} =
             Accounts.change_password(user, here, "wrong", "a new password")

    assert :ok = Accounts.change_password(user, here, password(), "a new password")

    assert FamilyChat.Kith.pre_key_bundle!(user.id).identity_key == before
    assert Accounts.user_of_session(here) == user
    assert Accounts.user_of_session(there) == nil
    assert Accounts.authenticate(user.name, password()) == {:error, :wrong}
    assert Accounts.authenticate(user.name, "a new password") == {:ok, user}
  end

  test "thirty people who log in at once are all let in" do
    people = for n <- 1..30, do: person!("P#{n}")
    for user <- people, do: FamilyChat.Locks.lock(user.id)

    logins =
      for user <- people, do: Task.async(fn -> Accounts.authenticate(user.name, password()) end)

    assert Task.await_many(logins, 60_000) == Enum.map(people, &{:ok, &1})
  end

  defp hash_of(user) do
    [[hash]] = SQL.rows("SELECT password_hash FROM users WHERE id = $1", [user.id])
    hash
  end

  # As sign-up left it then: open keys, and a hash.
  defp of_before!(user) do
    FamilyChat.Kith.remove_password!(user.id, password())
    Accounts.put_hash(user.id, Kith.Password.hash!(password()))
  end
end
