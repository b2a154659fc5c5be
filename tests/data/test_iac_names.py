"""data/iac_names.py: spellings of smells, technologies of files."""

import pytest

from data.iac_names import SMELLS, find_technology, normalise_smell


@pytest.mark.parametrize(
    "smell, spellings",
    [
        (
            "hard_coded_secret",
            "hard_coded_secret|Hard-coded secret|hardcoded-secret|HardCodedSecret|sec_hard_secr|hardcoded_password"
            "|Hard-coded user|sec_hard_user|sec_hard_pass|hardcoded-username|hard coded key|Hard-coded API key"
            "|SECURITY:::HARD_CODED_SECRET_V1:::Do not hard code secrets.|CWE-798: Use of Hard-coded Credentials"
            "|Hard-coded secret - Developers should not reveal it. (CWE-798)|password hardcoded|plain-text password",
        ),
        (
            "suspicious_comment",
            "suspicious_comment|Suspicious Comments|sec_susp_comm|suspicious word in comment",
        ),
        (
            "use_of_http",
            "use_of_http|use_of_http_without_ssl_tls|Use of HTTP without SSL/TLS|Use of HTTP without TLS|sec_https"
            "|HTTP without TLS|HTTPWithoutTLS|useOfHttp|http_no_tls|SECURITY:::HTTP:::|insecure HTTP|without TLS",
        ),
        (
            "weak_cryptography_algorithms",
            "weak_cryptography_algorithms|Use of weak cryptography algorithms|Weak Crypto Algorithm|sec_weak_crypt"
            "|use_of_weak_crypto_algorithm|Use of weak crypto. algo.|weak encryption|WeakCrypt|Use of MD5|sha-1",
        ),
        ("admin_by_default", "admin_by_default|Admin by default|sec_def_admin|AdminByDefault|DFLT_ADMN"),
        ("empty_password", "empty_password|Empty Passwords|sec_empty_pass|EMPT_PASS|password is empty"),
        (
            "invalid_ip_binding",
            "invalid_ip_binding|Invalid IP address binding|sec_invalid_bind|Unrestricted IP Address"
            "|improper ip address binding|SECURITY:::BINDING_TO_ALL:::|Binding to 0.0.0.0"
            "|[SECURITY] Invalid IP Address Binding (line=1, col=2)",
        ),
        (
            "no_integrity_check",
            "no_integrity_check|No integrity check|sec_no_int_check|Missing integrity check",
        ),
        (
            "missing_default_case",
            "missing_default_case|Missing default case statement|Missing Default in Case Statement"
            "|sec_no_default_switch|missing_default_switch|no default branch",
        ),
    ],
)
def test_spellings_of_the_known_smells(smell, spellings):
    assert {name: normalise_smell(name) for name in spellings.split("|")} == dict.fromkeys(
        spellings.split("|"), smell
    )


@pytest.mark.parametrize(
    "name, expected",
    [
        ("Full permission to the filesystem", "full_permission_to_the_filesystem"),
        ("sec_obsolete_command", "sec_obsolete_command"),
        ("BASE64", "base64"),
        ("hard-coded IP", "hard_coded_ip"),  # nobody's secret
        ("http header injection", "http_header_injection"),
        ("bareExcept", "bare_except"),
        ("key error", "key_error"),
    ],
)
def test_other_smells_keep_their_names(name, expected):
    assert normalise_smell(name) == normalise_smell(expected) == expected


def test_every_known_smell_is_its_own_spelling():
    assert [normalise_smell(smell) for smell in SMELLS] == list(SMELLS)
    assert all(1 <= meaning.count(". ") + 1 <= 2 for _, meaning in SMELLS.values())


@pytest.mark.parametrize(
    "file, expected",
    [
        ("a/site.PP", "Puppet"),
        ("me_puppet-cookbooks-x.rb", "Chef"),
        ("chef-repo-playbook.yml", "Ansible"),
        ("x/template.yaml", "Ansible"),
        ("modules/ntp/manifests/init", "Puppet"),
        ("cookbooks/ntp/metadata.json", "Chef"),
        ("main.tf", "Terraform"),
        ("app/Dockerfile", "Docker"),
        ("json/tool.py", "Python"),
        ("notes.txt", "infrastructure"),
    ],
)
def test_technology_of_a_file(file, expected):
    assert find_technology(file) == expected
