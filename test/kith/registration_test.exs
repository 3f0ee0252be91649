defmodule Kith.RegistrationTest do
  # A device that brings its identity key pair.
  use Kith.Case, async: true
  use Kith.Test.Stores

  setup do
    {pair, public} = identity_key_pair()
    %{kith: start_kith!(), pair: pair, public: public}
  end

  test "has the identity and the registration id it came with", %{kith: kith} = context do
    assert {:ok, %{identity_key: identity, registration_id: 12_345}} =
             Kith.register(kith, "anna",
               identity_key_pair: context.pair,
               registration_id: 12_345
             )

    assert identity == context.public

    assert %{identity_key: ^identity, registration_id: 12_345} =
             Kith.pre_key_bundle!(kith, "anna")

    register!(kith, ["ben"])
    assert send!(kith, "ben", "anna", "welcome") == "welcome"
    assert send!(kith, "anna", "ben", "thanks") == "thanks"
  end

  test "has a registration id that is drawn, unless it is given", %{kith: kith, pair: pair} do
    assert %{registration_id: id} = Kith.register!(kith, "anna", identity_key_pair: pair)
    assert id in 1..0x3FFF
    assert %{registration_id: 7} = Kith.register!(kith, {"anna", 2}, registration_id: 7)
  end

  test "may be registered again with the same pair, with none, and with no other",
       %{kith: kith, pair: pair} do
    registered = Kith.register!(kith, "anna", identity_key_pair: pair)
    before = dump(kith)
    assert Kith.register!(kith, "anna", identity_key_pair: pair) == registered
    assert Kith.register!(kith, "anna") == registered

    {other, _} = identity_key_pair()

    assert {:error, error} = Kith.register(kith, "anna", identity_key_pair: other)
    assert error.reason == :untrusted_identity
    assert Exception.message(error) =~ "registered with another pair"
    assert dump(kith) == before
  end

  test "is refused for bytes that are no pair, and nothing is written", %{kith: kith, pair: pair} do
    before = dump(kith)
    {other, _} = identity_key_pair()

    for bytes <- [
          "",
          "pair",
          binary_part(pair, 0, 68),
          pair <> "x",
          corrupt(pair, 0),
          corrupt(pair, 2),
          # The halves of two pairs.
          binary_part(pair, 0, 37) <> from(other, 37)
        ] do
      assert reason(Kith.register(kith, "anna", identity_key_pair: bytes)) == :malformed
    end

    assert dump(kith) == before
    assert reason(Kith.register(kith, "anna")) |> elem(0) == :ok
    assert reason(Kith.register(kith, "anna", identity_key_pair: "pair")) == :malformed
  end

  test "raises for options of another kind, and never prints them", %{kith: kith, pair: pair} do
    for options <- [
          [identity_key_pair: {:key, pair}],
          [identity_key_pair: pair, registration_id: -1],
          [identity_key_pair: pair, registration_id: "1"],
          [identity_key_pair: pair, registration_id: 0x1_0000_0000],
          [identity_keypair: pair],
          [{:identity_key_pair, pair} | :improper],
          %{identity_key_pair: pair},
          pair
        ] do
      error = assert_raise ArgumentError, fn -> Kith.register(kith, "anna", options) end
      message = Exception.message(error)
      refute message =~ inspect(pair)
      refute message =~ pair
    end

    assert reason(Kith.prekey_count(kith, "anna")) == :not_registered
  end
end
