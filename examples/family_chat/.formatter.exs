[
  import_deps: [],
  inputs: ["*.exs", "{config,lib,test}/**/*.{ex,exs}"]
]
