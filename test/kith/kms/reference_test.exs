defmodule Kith.KMS.ReferenceTest do
  use Kith.Case, async: true

  alias Kith.KMS.Reference

  setup do
    folder = Path.join(tmp_dir!(), "keys")
    {:ok, state} = Reference.open(folder)
    %{folder: folder, state: state}
  end

  defp key!(state, thread \\ "ab") do
    {:ok, %{key_id: key_id}} = Reference.create_dek_for_thread(state, thread)
    key_id
  end

  defp master(folder), do: Path.join(folder, "master.key")

  test "what is encrypted under a key decrypts under it, with the same place and version", %{
    state: state
  } do
    for aad <- ["", "place"], plaintext <- ["", "a key"] do
      key_id = key!(state)
      {:ok, ciphertext, 1} = Reference.encrypt_with_dek(state, key_id, plaintext, aad)
      decrypt = &Reference.decrypt_with_dek(state, key_id, &1, &2, &3)

      for version <- [nil, 1],
          do: assert(decrypt.(ciphertext, aad, version) == {:ok, plaintext})

      for version <- [0, 2, 7, "1"],
          do: assert(decrypt.(ciphertext, aad, version) == {:error, :not_found})

      assert decrypt.(ciphertext, "elsewhere", 1) == {:error, :refused}
      assert decrypt.(ciphertext, aad <> <<0>>, nil) == {:error, :refused}

      for position <- 0..(byte_size(ciphertext) - 1),
          do: assert(decrypt.(corrupt(ciphertext, position), aad, 1) == {:error, :refused})

      for size <- 0..(byte_size(ciphertext) - 1),
          do: assert(decrypt.(binary_part(ciphertext, 0, size), aad, 1) == {:error, :refused})

      assert decrypt.(ciphertext <> <<0>>, aad, 1) == {:error, :refused}
    end
  end

  test "nothing is encrypted twice alike", %{state: state} do
    key_id = key!(state)
    encrypt = fn -> Reference.encrypt_with_dek(state, key_id, "a key", "place") end
    assert encrypt.() != encrypt.()
  end

  test "each call makes a key, also for one thread, and none opens what another encrypted", %{
    state: state
  } do
    made =
      for thread <- ["ab", "ab", "cd"] do
        {:ok, made} = Reference.create_dek_for_thread(state, thread)
        assert %{kek_id: "master", kek_version: 1} = made
        assert Reference.wrapped_dek(state, made.key_id) == {:ok, made.wrapped_dek}
        made
      end

    assert length(Enum.uniq_by(made, & &1.key_id)) == 3
    assert length(Enum.uniq_by(made, & &1.wrapped_dek)) == 3

    for one <- made, other <- made, one != other do
      {:ok, ciphertext, 1} = Reference.encrypt_with_dek(state, one.key_id, "a key", "place")

      assert Reference.decrypt_with_dek(state, other.key_id, ciphertext, "place", 1) ==
               {:error, :refused}
    end
  end

  test "a key that it does not have is :not_found, and no name leads out of the folder", %{
    state: state,
    folder: folder
  } do
    File.write!(Path.join(folder, "other.dek"), "no key")
    key_id = key!(state)

    for name <- [
          String.duplicate("0", 32),
          String.upcase(key_id) <> "A",
          key_id <> "\n",
          key_id <> ".dek",
          "other",
          "master.key",
          "../keys/#{key_id}",
          "\0",
          ""
        ] do
      assert Reference.wrapped_dek(state, name) == {:error, :not_found}
      assert Reference.encrypt_with_dek(state, name, "a key", "") == {:error, :not_found}
      assert Reference.decrypt_with_dek(state, name, "a key", "", 1) == {:error, :not_found}
    end
  end

  test "a key is bound to its name and to the master key", %{state: state, folder: folder} do
    [one, other] = for thread <- ["ab", "cd"], do: key!(state, thread)
    {:ok, ciphertext, 1} = Reference.encrypt_with_dek(state, one, "a key", "")
    [path, elsewhere] = for key_id <- [one, other], do: Path.join(folder, key_id <> ".dek")

    File.cp!(path, elsewhere)
    assert Reference.decrypt_with_dek(state, other, ciphertext, "", 1) == {:error, :refused}
    assert Reference.encrypt_with_dek(state, other, "a key", "") == {:error, :refused}

    # The same folder opens the same keys.
    {:ok, again} = Reference.open(folder)
    assert Reference.decrypt_with_dek(again, one, ciphertext, "", 1) == {:ok, "a key"}

    File.rm!(master(folder))
    {:ok, changed} = Reference.open(folder)
    assert Reference.decrypt_with_dek(changed, one, ciphertext, "", 1) == {:error, :refused}
  end

  test "those that open a folder at once have one master key, and the mode of a folder that was there is left" do
    folder = tmp_dir!()
    File.chmod!(folder, 0o755)

    states =
      1..8
      |> Enum.map(fn _ -> Task.async(fn -> Reference.open(folder) end) end)
      |> Task.await_many()

    assert [{:ok, _}] = Enum.uniq(states)
    assert File.ls!(folder) == ["master.key"]
    assert Bitwise.band(File.stat!(folder).mode, 0o777) == 0o755
  end

  test "a key that cannot be kept is not made", %{state: state, folder: folder} do
    File.rm_rf!(folder)
    assert Reference.create_dek_for_thread(state, "ab") == {:error, :unavailable}
  end

  test "its files are its owner's, and it refuses a master key that is not", %{
    folder: folder,
    state: state
  } do
    key!(state)
    assert [_, _] = files = Path.wildcard(Path.join(folder, "*"))
    for path <- files, do: assert(Bitwise.band(File.stat!(path).mode, 0o777) == 0o600)
    assert Bitwise.band(File.stat!(folder).mode, 0o777) == 0o700

    File.chmod!(master(folder), 0o640)
    assert {:error, sentence} = Reference.open(folder)
    assert sentence =~ "chmod 600"

    File.chmod!(master(folder), 0o600)

    for text <- ["", "no Base64", Base.encode64("short"), Base.encode64(<<0::264>>)] do
      File.write!(master(folder), text)
      assert {:error, sentence} = Reference.open(folder)
      assert sentence =~ "32 bytes in Base64"
    end

    assert {:error, sentence} = Reference.open(Path.join(master(folder), "keys"))
    assert sentence =~ "not a directory"
  end

  test "its master key is not shown", %{state: state} do
    assert inspect(state) =~ state.folder
    refute inspect(state) =~ "master:"
    refute inspect(state, limit: :infinity) =~ inspect(state.master, limit: :infinity)
  end
end
