defmodule Kith.PreKeyBundleTest do
  use Kith.Case, async: true

  alias Kith.PreKeyBundle

  setup do
    kith = start_kith!()
    register!(kith, ["ben"])
    %{kith: kith, bundle: Kith.pre_key_bundle!(kith, "ben")}
  end

  test "survives its form for JSON", %{bundle: bundle} do
    map = PreKeyBundle.to_map(bundle)
    assert PreKeyBundle.from_map(map) == {:ok, bundle}

    full = %{
      bundle
      | prekeys: [bundle.prekey],
        prekey: nil,
        kyber_prekeys: [bundle.kyber_prekey, bundle.kyber_prekey]
    }

    assert PreKeyBundle.from_map(PreKeyBundle.to_map(full)) == {:ok, full}
  end

  test "needs neither an owner nor one-time prekeys", %{bundle: bundle} do
    map =
      bundle
      |> PreKeyBundle.to_map()
      |> Map.drop(~w(user device prekey prekeys kyber_prekey kyber_prekeys))

    assert {:ok,
            %PreKeyBundle{
              user: nil,
              prekey: nil,
              prekeys: [],
              kyber_prekey: nil,
              kyber_prekeys: []
            }} = PreKeyBundle.from_map(map)
  end

  test "of any other shape is malformed", %{bundle: bundle} do
    map = PreKeyBundle.to_map(bundle)

    for {key, _} <- map,
        value <- [
          "",
          "!\0",
          1.5,
          -1,
          4_294_967_296,
          [],
          [1],
          [nil | 1],
          %{},
          %{"id" => 1},
          <<255>>
        ],
        not (key in ["prekeys", "kyber_prekeys"] and value == []) do
      assert reason(PreKeyBundle.from_map(%{map | key => value})) in [:malformed, :too_large],
             "#{key}: #{inspect(value)}"
    end

    fields = Map.from_struct(bundle)

    for {key, value} <- [
          identity_key: <<6, 0::256>>,
          identity_key: <<5, 0::248>>,
          registration_id: nil,
          signed_prekey: Map.delete(bundle.signed_prekey, :signature),
          prekey: %{id: 1, public_key: <<5>>},
          prekeys: [%{}],
          prekeys: :none,
          kyber_prekey: bundle.signed_prekey,
          kyber_prekey: Map.delete(bundle.kyber_prekey, :signature),
          kyber_prekey: %{bundle.kyber_prekey | public_key: <<7, 0::size(12_544)>>},
          kyber_prekey: %{bundle.kyber_prekey | public_key: <<8, 0::size(12_536)>>},
          kyber_prekeys: [%{bundle.kyber_prekey | id: -1}],
          kyber_prekeys: List.duplicate(bundle.kyber_prekey, 2) ++ [nil]
        ] do
      assert reason(PreKeyBundle.new(%{fields | key => value})) == :malformed
    end

    # Nothing would be left when the last of them is handed out.
    without = %{fields | kyber_prekey: nil, kyber_prekeys: [bundle.kyber_prekey]}
    assert reason(PreKeyBundle.new(without)) == :malformed
  end

  test "prints ids and no keys", %{bundle: bundle} do
    assert inspect(bundle) ==
             ~s(#Kith.PreKeyBundle<"ben"/1, signed prekey #{bundle.signed_prekey.id}, ) <>
               ~s(one-time prekey #{bundle.prekey.id}, Kyber prekey #{bundle.kyber_prekey.id}, ) <>
               ~s(0 and 0 published>)

    assert inspect(%{bundle | prekey: nil, kyber_prekey: nil}) =~
             "no one-time prekey, no Kyber prekey"
  end
end
