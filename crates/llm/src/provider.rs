use crate::Error;

/// Where a provider is reached: `given` (a run's `baseURL`) when it is not empty, else the provider's own address.
///
/// The names and the two local addresses are Sympozium's. Its agent sends every provider it does not know to OpenAI,
/// with the key; here such a provider needs a `baseURL`.
///
/// # Errors
/// [`Error::Provider`] when there is no address, with a sentence for the user.
pub fn base_url(provider: &str, given: &str) -> Result<String, Error> {
    let given = given.trim();
    if !given.is_empty() {
        return Ok(given.to_owned());
    }
    let known = match provider.trim().to_ascii_lowercase().as_str() {
        "" | "openai" => "https://api.openai.com/v1",
        "ollama" => "http://ollama.default.svc:11434/v1",
        "lm-studio" => "http://localhost:1234/v1",
        "openrouter" => "https://openrouter.ai/api/v1",
        "groq" => "https://api.groq.com/openai/v1",
        "deepseek" => "https://api.deepseek.com/v1",
        "mistral" => "https://api.mistral.ai/v1",
        "anthropic" | "bedrock" | "azure-openai" | "gemini" | "google" | "vertex" => {
            return Err(Error::Provider(format!(
                "the provider {provider:?} speaks its own API, which is not supported yet; set baseURL to an address of \
                 it, or of a proxy, that speaks OpenAI's chat completions"
            )));
        }
        _ => {
            return Err(Error::Provider(format!(
                "the provider {provider:?} has no address that is known here; set baseURL to one that speaks OpenAI's \
                 chat completions"
            )));
        }
    };
    Ok(known.to_owned())
}
