//! Checks that a relative link in a document leads to a file. It does not look at the web or at anchors.

use super::{Finding, numbered};

pub(super) fn check(file: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    let mut fence: Option<&str> = None;
    for (number, line) in numbered(text) {
        let trimmed = line.trim_start();
        let marker = ["```", "~~~"].into_iter().find(|marker| trimmed.starts_with(marker));
        match (fence, marker) {
            (None, Some(_)) => fence = marker,
            (Some(open), Some(close)) if open == close => fence = None,
            _ => {}
        }
        if fence.is_some() || marker.is_some() {
            continue;
        }
        for target in targets(&without_code(line)) {
            match resolve(folder, &target) {
                Some(path) if exists(&path) => {}
                Some(path) => {
                    let advice = format!("correct the link to {target}; there is no {path}");
                    findings.push(Finding::new(file, number, advice));
                }
                None => {
                    let advice = format!("correct the link to {target}, which leads out of the repository");
                    findings.push(Finding::new(file, number, advice));
                }
            }
        }
    }
    findings
}

/// Blanks `code` in a line, which may show a link without being one.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    // The part after a last, unpaired backtick is text.
    let is_code = |index: usize| index % 2 == 1 && index + 1 < parts.len();
    parts.iter().enumerate().map(|(index, part)| if is_code(index) { " " } else { *part }).collect()
}

/// Gives the relative targets of `[text](target "title")` and `[name]: target`, without their anchors.
fn targets(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (start, _) in line.match_indices("](") {
        let target = &line[start + 2..];
        let end = match target.strip_prefix('<') {
            Some(angled) => angled.find('>').map(|end| end + 2),
            None => target.find([')', ' ']),
        };
        found.extend(end.map(|end| &target[..end]));
    }
    let trimmed = line.trim_start();
    if trimmed.starts_with('[')
        && let Some((_, target)) = trimmed.split_once("]: ")
    {
        found.extend(target.split_whitespace().next());
    }
    let relative = found.into_iter().filter_map(|target| {
        let target = target.trim_start_matches('<').trim_end_matches('>');
        let path = target.split(['#', '?']).next().unwrap_or_default();
        let is_elsewhere = path.is_empty() || path.starts_with("//") || has_scheme(path);
        (!is_elsewhere).then(|| path.replace("%20", " "))
    });
    relative.collect()
}

fn has_scheme(target: &str) -> bool {
    let is_part = |character: char| character.is_ascii_alphanumeric() || "+-.".contains(character);
    target.split_once(':').is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.chars().all(is_part))
}

/// Joins a target to the folder of its document; a target that begins with `/` starts at the top.
fn resolve(folder: &str, target: &str) -> Option<String> {
    let start = if target.starts_with('/') { "" } else { folder };
    let mut parts: Vec<&str> = start.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(if parts.is_empty() { ".".into() } else { parts.join("/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, String)> {
        let exists = |path: &str| [".", "README.md", "docs/a.md", "docs/b c.md", "src"].contains(&path);
        let findings = check("docs/page.md", text, exists);
        findings.into_iter().map(|finding| (finding.line, finding.advice)).collect()
    }

    #[test]
    fn links_that_lead_to_files_are_fine() {
        let text = "[a](a.md) ![b](<b c.md>) [b](b%20c.md) [c](../README.md#start \"title\") [d](/docs/a.md)\n\
                    [e](#here) \
                    [f](https://example.org/missing) [g](mailto:a@b) [h](..) [i](../src/)\n[j]: a.md 'title'\n\
                    `[k](missing.md)`\n```\n[l](missing.md)\n```\n";
        assert_eq!(found(text), []);
    }

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let nowhere = "correct the link to missing.md; there is no docs/missing.md".to_owned();
        assert_eq!(found("[a](a.md)\n[b](missing.md#part)"), [(2, nowhere.clone())]);
        assert_eq!(found("[b]: missing.md"), [(1, nowhere.clone())]);
        assert_eq!(found("a ` b [b](missing.md)"), [(1, nowhere.clone())]);
        assert_eq!(found("```\n~~~\n```\n[b](missing.md)"), [(4, nowhere)]);
        let outside = "correct the link to ../../x.md, which leads out of the repository".to_owned();
        assert_eq!(found("[c](../../x.md)"), [(1, outside)]);
    }
}
